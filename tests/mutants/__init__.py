"""This package finds how much the tests notice: it changes one token of a kernel, and asks which tier of them fails.

``python -m tests.mutants`` chooses the changes by a seed, tries each in a copy of the tree, and tabulates.
"""
