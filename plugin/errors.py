"""What can go wrong with Label Studio's formats and its API.

PluginError
├── AnnotationError       what Label Studio says about an annotation or its project cannot be placed
├── LabelingConfigError   a labeling config that Forelabel cannot suggest labels for
└── StudioError           Label Studio did not do what was asked
"""

from __future__ import annotations


class PluginError(Exception):
    """Base of everything this package raises on purpose. The message says what arrived and what to do."""


class AnnotationError(PluginError):
    """An annotation without usable ids, or a project that cannot be told from others."""


class LabelingConfigError(PluginError):
    """A labeling config that Forelabel cannot suggest labels for."""


class StudioError(PluginError):
    """Label Studio did not do what was asked.

    Attributes:
        status: the HTTP status it answered, None when there was no answer.
        detail: its own words.
    """

    def __init__(self, message: str, status: int | None = None, detail: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail
