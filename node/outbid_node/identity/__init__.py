"""Who belongs to the mesh: the mesh key, and all the keys, certificates and credentials that follow from it."""
