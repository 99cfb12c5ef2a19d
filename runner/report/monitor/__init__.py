"""`runner monitor`: what it watches, and how that is shown."""
