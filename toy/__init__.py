"""A made-up world as every data set, and the small model that lives in it."""
