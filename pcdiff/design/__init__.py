"""From a scan to an implant's files: the flow, its settings, and the record of each case.

`pcdiff.design` names both this package and the public function `pcdiff.design.flow.design`. The package can be called,
`pcdiff.design(skull, method)`, so both work in any order of imports.
"""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        from pcdiff.design.flow import design

        return design(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
