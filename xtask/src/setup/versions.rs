//! The version of every tool that setup installs. Kubernetes, etcd and CoreDNS have theirs in `xtask/kubeall/go.mod`.

/// The toolchain that the eBPF programs are built with, and the Debian package that has the source of its `core`.
pub(crate) const RUST: &str = "1.95.0";
pub(crate) const RUST_SRC: &str = "1.95.0+dfsg1-2~bpo13+1";
pub(crate) const RUST_SRC_SUITE: &str = "trixie-backports";
pub(crate) const RUST_SRC_SHA256: &str = "7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b";

/// bpf-linker and the libLLVM that comes with that toolchain.
pub(crate) const BPF_LINKER: &str = "0.13.0";
pub(crate) const LLVM_FEATURE: &str = "llvm-22";

/// The first Go that fetches the toolchain a module asks for by itself.
pub(crate) const GO_FETCHES_TOOLCHAINS: (u32, u32) = (1, 21);

/// The kernel of the emulated machine: an LTS one before 6.6, which has neither TCX nor crash-safe links of it. The variant
/// for clouds has what the tests want at a third of the size.
pub(crate) const KERNEL: &str = "linux-image-cloud-amd64";
pub(crate) const KERNEL_SUITE: &str = "bookworm";

/// Debian packages that are installed on the machine, with what they are for. None of them starts a service.
pub(crate) const INSTALLED: [(&str, &str); 20] = [
    ("bind9-dnsutils", "dig, for tests of names"),
    ("bpftool", "an independent view of the kernel's maps"),
    ("binutils", "smaller programs for the emulated machine"),
    ("ca-certificates", "downloads"),
    ("curl", "the demo"),
    ("dbus-daemon", "systemd-resolved in the lab"),
    ("dnsmasq-base", "the name server that the bench compares with"),
    ("gcc", "linking"),
    ("iproute2", "links, addresses and routes"),
    ("iputils-ping", "tests of the floor"),
    ("libc6-dev", "static programs for the images"),
    ("libdevmapper1.02.1", "Docker in the lab"),
    ("libseccomp2", "runc"),
    ("nftables", "the lab's rules and kube-proxy's"),
    ("procps", "tests that look at processes"),
    ("python3", "tests with a program in another language"),
    ("qemu-system-x86", "an older kernel, emulated"),
    ("strace", "tests that end a program at one of its system calls"),
    ("sudo", "starting the privileged daemon as a user"),
    ("systemd", "a test of the unit file; nothing of it runs"),
];

/// Debian packages that are unpacked into the cache: installed, some of them would start services.
pub(crate) const UNPACKED: [&str; 8] = [
    "containerd",
    "containernetworking-plugins",
    "docker.io",
    "iptables",
    "libnss-resolve",
    "libsystemd-shared",
    "runc",
    "systemd-resolved",
];
