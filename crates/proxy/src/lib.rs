//! The protocol of AWS IoT Secure Tunneling's data plane, as plain values: no I/O, no clock, no task.
//!
//! Source: AWS's [protocol guides](https://github.com/aws-samples/aws-iot-securetunneling-localproxy), V1, V2 and V3.

pub mod codec;
pub mod message;
pub mod session;
