"""What large models need: fast decoding, sharding, adapters, and the plan of what fits."""
