"""How the losses of rows become one scalar."""
