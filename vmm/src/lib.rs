//! KVM virtual machine monitor whose VMs survive the loss of their host.
