"""Types, schemas and files that cross package borders. Depends on nothing of ours and never on torch."""
