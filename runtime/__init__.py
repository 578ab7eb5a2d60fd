"""What every run needs and the lesson does without."""
