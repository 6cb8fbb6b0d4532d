"""libvirt's errors in the port's words: the public sentence says what could not be done, the detail stays private."""

from __future__ import annotations

from typing import Final

import libvirt

from usina.ports.driver import DriverError, HostUnreachable

_GONE: Final = {
    libvirt.VIR_ERR_NO_CONNECT,
    libvirt.VIR_ERR_INVALID_CONN,
    libvirt.VIR_ERR_RPC,
    libvirt.VIR_ERR_AUTH_FAILED,
}
_GONE_DOMAINS: Final = {libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE}
_LASTING: Final = {
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_XML_ERROR,
    libvirt.VIR_ERR_XML_DETAIL,
    libvirt.VIR_ERR_NO_SUPPORT,
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
}
_REASONS: Final = (  # what libvirt says -> what a tenant may read
    ("cannot allocate memory", "the host lacks free memory"),
    ("no space left", "the host's disk is full"),
    ("unable to map backing store", "the host lacks free huge pages"),
    ("vfio", "a device could not be given to the guest"),
)


def is_missing(error: libvirt.libvirtError) -> bool:
    """Whether the thing asked for is simply not there."""
    return error.get_error_code() in {
        libvirt.VIR_ERR_NO_DOMAIN,
        libvirt.VIR_ERR_NO_NETWORK,
        libvirt.VIR_ERR_NO_STORAGE_POOL,
        libvirt.VIR_ERR_NO_STORAGE_VOL,
        libvirt.VIR_ERR_NO_NWFILTER,
        libvirt.VIR_ERR_NO_NWFILTER_BINDING,
        libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT,
        libvirt.VIR_ERR_NO_NODE_DEVICE,
    }


def is_connection_loss(error: libvirt.libvirtError) -> bool:
    return error.get_error_code() in _GONE or (
        error.get_error_domain() in _GONE_DOMAINS
        and error.get_error_code() in {libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_INTERNAL_ERROR}
    )


def as_driver_error(error: libvirt.libvirtError, deed: str) -> DriverError:
    """`deed` completes "the host could not …"."""
    detail = str(error)
    if is_connection_loss(error):
        return HostUnreachable("the host does not answer", detail=detail)
    said = detail.lower()
    reason = next((f": {public}" for marker, public in _REASONS if marker in said), "")
    return DriverError(f"the host could not {deed}{reason}", lasting=error.get_error_code() in _LASTING, detail=detail)
