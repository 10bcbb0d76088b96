//! Stories told with a booted image.
