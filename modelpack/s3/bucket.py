"""A prefix of a bucket as an origin of files (`pack.origin.Origin`)."""

import io
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from modelpack.oci.transport import Transport
from modelpack.pack.origin import SourceFile
from modelpack.select.patterns import BUILT_IN, Selection
from modelpack.spec import limits
from modelpack.spec.errors import BadSource, HostilePath, InputError, Unavailable
