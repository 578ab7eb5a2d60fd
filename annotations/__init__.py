"""The files that data sets come as, read into Examples; and the judge of captions."""

# A file in every data set that was made up (toy/world.py): its figures are to be called toy
# figures.
MARK = "MADE_BY_TOY_PY"
