"""What is made of runs afterwards: the report page, the paper's comparison, merged adapters."""
