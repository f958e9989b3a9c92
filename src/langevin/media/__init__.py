"""Pictures in all their forms, and the settings that they carry."""
