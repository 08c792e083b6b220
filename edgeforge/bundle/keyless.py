"""Whose identity signs without a key: an OpenID token, looked at before any byte is hashed and any service is asked."""

from edgeforge.errors import MissingDependency, UnusableInput

IDENTITY_HINT = "in GitHub Actions the job needs `permissions: id-token: write`; elsewhere give --identity-token"


def identity_token(given: str | None, *, may_log_in: bool) -> str | None:
    """`given`, else the token that this CI job can have; None where there is neither, and somebody can log in.

    UnusableInput for one that is no token, has expired or was refused, and where there is nobody to sign as: the
    library would then wait for a browser.
    """
    try:
        from sigstore import oidc
    except ImportError as error:
        raise MissingDependency(
            f"signatures need the package model-signing ({error})", hint="python -m pip install 'edgeforge[sign]'"
        ) from None
    try:
        token = given or oidc.detect_credential()
        if token is not None:
            oidc.IdentityToken(token)
    except oidc.IdentityError as error:
        words = " ".join(str(error).split())[:300].rstrip(".")
        raise UnusableInput(f"there is no identity to sign as: {words}", hint=IDENTITY_HINT) from None
    if token is None and not may_log_in:
        raise UnusableInput(
            "there is no identity to sign as: this is no CI job that has one, and nobody is here to log in",
            hint=IDENTITY_HINT,
        )
    return token
