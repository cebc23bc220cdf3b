"""Certificates where rows are not simple draws: groups, the fields of an answer, traffic that has shifted."""
