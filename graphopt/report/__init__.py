"""Reports: one data model (`document`), and what renders it."""
