"""One module per revision of the schema. What was released is never edited: the next revision mends it."""
