"""JSON answers: schema in, valid JSON out, fields compared."""
