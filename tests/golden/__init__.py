"""Golden directories: what earlier writers left, to be opened, or refused, for ever."""
