"""Where images come from: folders, tar files, manifests, lists of paths. Each is read as a stream."""
