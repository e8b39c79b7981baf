"""Every error the product raises on purpose.

ServeAppError                 status  code
├── BadRequest                400     invalid_value
│   ├── UnknownField          400     unknown_field
│   ├── MalformedJson         400     malformed_json
│   └── HintConflict          400     hint_conflict
├── Unauthorized              401     invalid_api_key
├── NotFound                  404     not_found
│   ├── UnknownModel          404     model_not_found
│   └── UnknownVariant        404     variant_not_found
├── MethodNotAllowed          405     method_not_allowed
├── PayloadTooLarge           413     payload_too_large
├── UnsupportedMediaType      415     unsupported_media_type
├── NotAdmitted               429     not_admitted         nothing was computed
├── InternalError             500     internal_error
├── NotReady                  503     not_ready
│   └── ReplicaDied           503     replica_died         retried once by the router
├── DeadlineExceeded          504     deadline_exceeded    admitted, but late
└── SetupError                        one line for the person who starts a program
    ├── ArtifactError                 an artifact that breaks its manifest's promises
    ├── SettingsError                 an unknown or impossible setting
    └── ConversionError               a checkpoint, corpus or conversion that cannot work
"""

from __future__ import annotations

from http import HTTPStatus

SHOWN_VALUE_CHARS = 80


def shown(value: object) -> str:
    """A value as an error message shows it: its repr, cut to a readable length."""
    try:
        text = repr(value)
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"
    if len(text) <= SHOWN_VALUE_CHARS:
        return text
    return f"{text[:SHOWN_VALUE_CHARS]}… ({len(text)} characters)"


class ServeAppError(Exception):
    """Base of all; `param` is the offending field of a request, where there is one."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class BadRequest(ServeAppError):
    """The request is malformed; the message names the field and the value."""

    status = HTTPStatus.BAD_REQUEST
    code = "invalid_value"


class UnknownField(BadRequest):
    code = "unknown_field"


class MalformedJson(BadRequest):
    code = "malformed_json"


class HintConflict(BadRequest):
    """A pinned variant and a quality floor that contradict each other."""

    code = "hint_conflict"


class Unauthorized(ServeAppError):
    """No API key, or one that the server does not know."""

    status = HTTPStatus.UNAUTHORIZED
    code = "invalid_api_key"


class NotFound(ServeAppError):
    status = HTTPStatus.NOT_FOUND
    code = "not_found"


class UnknownModel(NotFound):
    code = "model_not_found"


class UnknownVariant(NotFound):
    code = "variant_not_found"


class MethodNotAllowed(ServeAppError):
    status = HTTPStatus.METHOD_NOT_ALLOWED
    code = "method_not_allowed"

    def __init__(self, message: str, *, allowed: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allowed = allowed


class PayloadTooLarge(ServeAppError):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "payload_too_large"


class UnsupportedMediaType(ServeAppError):
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    code = "unsupported_media_type"


class NotAdmitted(ServeAppError):
    """No variant can meet the hint now; nothing was computed.

    `retry_after_s` is None where waiting cannot help: the budget is below what the fastest
    variant needs with an empty queue.
    """

    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "not_admitted"

    def __init__(self, message: str, *, param: str | None, retry_after_s: float | None) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class InternalError(ServeAppError):
    """A bug or a broken engine; the details are in the server's log, not in the answer."""


class NotReady(ServeAppError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "not_ready"


class ReplicaDied(NotReady):
    """The replica that held the work is gone."""

    code = "replica_died"


class DeadlineExceeded(ServeAppError):
    """The request was admitted, and its budget passed before the vectors were there."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    code = "deadline_exceeded"


class SetupError(ServeAppError):
    """Something a person must mend before a program can run; the message says what to do."""

    code = "setup_error"


class ArtifactError(SetupError):
    code = "artifact_error"


class SettingsError(SetupError):
    code = "settings_error"


class ConversionError(SetupError):
    code = "conversion_error"
