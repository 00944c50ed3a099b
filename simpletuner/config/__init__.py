"""The configuration room: options, datasets, files; imports nothing of the program."""
