"""The spool: a folder that a teacher of another environment fills and this one reads."""
