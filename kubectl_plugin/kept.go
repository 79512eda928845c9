// What agents have kept in Secrets of a task: the log of a run, and the plan that waits for a person.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const maxParts = 32

var secrets = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}

// secret is the value of one key.
func (a *access) secret(ctx context.Context, name, key string) ([]byte, error) {
	object, err := a.objects.Resource(secrets).Namespace(a.namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, about(err, "get", "secrets", a.namespace, name)
	}
	encoded, _, _ := unstructured.NestedString(object.Object, "data", key)
	value, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, fmt.Errorf("Secret %s: %w", name, err)
	}
	return value, nil
}

// keptLog is the log of a run as its agent had shown it.
func (a *access) keptLog(ctx context.Context, runID string) ([]byte, error) {
	name := "terrahalt-log-" + strings.ToLower(runID)
	packed, err := a.secret(ctx, name, "log.gz")
	if err != nil {
		return nil, err
	}
	return unzipped(packed, name)
}

// keptPlan is the plan of a task as people read it. It is of the very archive that has this digest.
func (a *access) keptPlan(ctx context.Context, plan *Plan) (string, error) {
	name := "terrahalt-plan-" + strings.ToLower(plan.RunID)
	var packed []byte
	for number := range maxParts {
		part := name
		if number > 0 {
			part = fmt.Sprintf("%s-part-%d", name, number)
		}
		value, err := a.secret(ctx, part, "plan")
		if apierrors.IsNotFound(err) && number > 0 {
			break
		}
		if err != nil {
			return "", err
		}
		packed = append(packed, value...)
	}
	archive, err := unzipped(packed, name)
	if err != nil {
		return "", err
	}
	if digest := fmt.Sprintf("sha256:%x", sha256.Sum256(archive)); digest != plan.Digest {
		return "", fmt.Errorf("what is in Secret %s is not the plan of this task: it has the digest %s, and the task %s", name,
			digest, plan.Digest)
	}
	for files := tar.NewReader(bytes.NewReader(archive)); ; {
		file, err := files.Next()
		if errors.Is(err, io.EOF) {
			return "", fmt.Errorf("Secret %s holds no plan that people can read", name)
		}
		if err != nil {
			return "", fmt.Errorf("Secret %s: %w", name, err)
		}
		if file.Name == "plan.txt" {
			text, err := io.ReadAll(files)
			return string(text), err
		}
	}
}

func unzipped(packed []byte, name string) ([]byte, error) {
	reader, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("Secret %s is damaged: %w", name, err)
	}
	content, err := io.ReadAll(reader)
	if err != nil {
		return nil, fmt.Errorf("Secret %s is damaged: %w", name, err)
	}
	return content, nil
}
