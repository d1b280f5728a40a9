"""The kinds of files that hold a network's variables: one file each."""
