"""What a person or a program reads of a run: the terminal table, the progress line, and the form of the JSON."""
