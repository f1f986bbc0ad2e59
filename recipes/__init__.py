"""The papers' ways to train, one file each, and the commands that follow them: ``python -m recipes.train --help``."""
