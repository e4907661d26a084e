"""How a machine gets the mesh key: an invitation with a short code, and a password-authenticated key exchange over
TCP.
"""
