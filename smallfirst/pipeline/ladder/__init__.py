"""A ladder that thinks about time: which candidates are tried within `minutes`, in which order, with what settings."""
