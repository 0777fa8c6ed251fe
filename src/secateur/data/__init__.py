"""Reading, indexing and batching: texts, images, boxes, tables, facts."""
