"""One module per producer: what its files look like and what they mean."""

from ..reading import Reader
from . import feature, projection, safeailab, safeailab3, surgery

READERS: dict[str, Reader] = {
    module.READER.name: module.READER for module in (safeailab, safeailab3, feature, surgery, projection)
}
