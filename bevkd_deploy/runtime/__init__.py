"""Run an exported student: sensor arrays in, boxes out. Never imports torch."""
