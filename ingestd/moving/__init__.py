"""Moving a database as a whole: copies, backups, restoring, and who may read it."""
