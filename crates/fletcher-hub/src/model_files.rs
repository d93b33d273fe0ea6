//! A folder as the core sees it: small files as bytes, weights mapped.

use bytes::Bytes;
use fletcher_core::ModelError;
use fletcher_core::model::ModelFiles;
use fletcher_core::weights::WeightFile;

use crate::folder::{FolderError, ModelFolder};

impl ModelFiles for ModelFolder {
    fn name(&self) -> &str {
        self.name()
    }

    fn read(&self, path: &str) -> Result<Option<Bytes>, ModelError> {
        Ok(self.read_small(path).map_err(|error| read_error(path, &error))?.map(Bytes::from))
    }

    fn weights(&self, folder: &str) -> Result<Vec<WeightFile>, ModelError> {
        let names = self.weight_files(folder).map_err(|error| read_error("weights", &error))?;
        let map = |name: String| {
            let bytes = self.map(&name).map_err(|error| read_error(&name, &error))?;
            Ok(WeightFile { name, bytes })
        };
        names.into_iter().map(map).collect()
    }

    fn release(&self) {
        self.release();
    }
}

fn read_error(file: &str, error: &FolderError) -> ModelError {
    ModelError::Read { file: file.to_owned(), message: error.to_string() }
}
