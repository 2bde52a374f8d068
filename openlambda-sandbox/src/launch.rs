//! The program that runs a function, with its environment and folders: the same in every kind of sandbox.
//!
//! | variable | what |
//! |---|---|
//! | `LAMBDA_TASK_ROOT` (and working folder) | its code, shared with other instances: do not write to it |
//! | `HOME`, `TMPDIR` | its own folders; removed with the instance |
//! | `OPENLAMBDA_VOLUME_<NAME>` | the folder of a volume; its name in upper case, with `_` for other characters than letters and digits |
//! | `OPENLAMBDA_PYTHON_PACKAGES` | folders with Python packages that the operator gives to all functions, with colons in between; absent without any |
//! | `_HANDLER`, `AWS_LAMBDA_*`, `LAMBDA_*`, `TZ` | as on AWS |
//! | `AWS_LAMBDA_RUNTIME_API` | with `runtime = "bootstrap"`: the address of the Runtime API |
//! | the manifest's `[environment]` | may change `PATH`, `LANG`, `HOME`, `TMPDIR` and `TZ`, not the rest |

mod environment;
mod folders;
mod program;

pub(crate) use environment::{Places, check_mark, environment};
pub(crate) use folders::volumes;
#[cfg(any(feature = "docker", feature = "sock"))]
pub(crate) use folders::{Folder, absolute, own_volume, packages, remove_sandboxes, text};
#[cfg(any(feature = "process", feature = "sock"))]
pub(crate) use program::compile_python;
pub(crate) use program::{PYTHON_ARGUMENTS, PYTHON_FILES, Program};
