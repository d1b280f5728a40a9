"""The command line, the top floor: it imports everything, and nothing imports it."""
