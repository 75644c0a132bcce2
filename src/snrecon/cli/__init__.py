"""The command line: thin commands that read options, call the package and print what came out."""
