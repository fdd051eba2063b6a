//! The machine on a real `/dev/kvm`, without an operating system: a payload of a few hundred bytes runs on its processor, and
//! does one memory access after the other as a test says.

mod code;
mod devices;
mod driver;
mod guest;
mod power;
mod processors;
mod reset;
mod skip;
