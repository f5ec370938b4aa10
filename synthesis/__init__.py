"""Cross-modal image synthesis behind one interface. Imports no torch."""
