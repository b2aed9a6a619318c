"""The same two apps as a real federation: SuperLink and SuperNodes, in containers or not."""
