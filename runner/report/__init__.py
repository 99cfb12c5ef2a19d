"""What a run and a machine look like to people: reports, comparisons and terminal views.

Importing the package imports nothing else.
"""
