"""The command line: thin commands over the library. Importing it loads neither torch nor pydantic; commands load what they need."""
