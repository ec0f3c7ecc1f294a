"""How the bundled pocket models are trained. Needs the photos in ../shared/data; not installed with the product."""
