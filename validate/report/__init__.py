"""What runs measured, as a page, tables and figures."""
