"""Bundles: a run in one file, with what it takes to reproduce it on another machine, and back.

Importing the package imports nothing else.
"""
