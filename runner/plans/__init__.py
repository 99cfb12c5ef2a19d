"""What will run: the parts that every plan is made of, the facts of the host, rendering."""
