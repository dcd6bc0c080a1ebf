//! What needs unsafe code: the device's search list, which Windows only takes through its own interface.
#![expect(unsafe_code, reason = "a function of iphlpapi.dll")]

use std::io;

use windows_sys::{
    Win32::NetworkManagement::IpHelper::{
        DNS_INTERFACE_SETTINGS, DNS_INTERFACE_SETTINGS_VERSION1, DNS_SETTING_SEARCHLIST, SetInterfaceDnsSettings,
    },
    core::GUID,
};

/// Gives the device with this GUID a list of domains that complete single labels; empty, it has none. Windows 10 2004 and
/// newer.
pub(super) fn set_search_list(device: u128, domains: &[String]) -> io::Result<()> {
    let mut list: Vec<u16> = domains.join(",").encode_utf16().chain([0]).collect();
    let settings = DNS_INTERFACE_SETTINGS {
        Version: DNS_INTERFACE_SETTINGS_VERSION1,
        Flags: u64::from(DNS_SETTING_SEARCHLIST),
        SearchList: list.as_mut_ptr(),
        ..Default::default()
    };
    // SAFETY: `settings` and the zero-terminated list that it points to live until the call returns; the other members
    // are not looked at, for want of their flags.
    let code = unsafe { SetInterfaceDnsSettings(GUID::from_u128(device), &raw const settings) };
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.cast_signed())) }
}
