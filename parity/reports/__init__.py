"""What a comparison found, as values and as text, JUnit XML and HTML."""
